"""A template for packages that extend efface."""

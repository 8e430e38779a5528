"""What is asked for: requests, concept spaces, prompts."""

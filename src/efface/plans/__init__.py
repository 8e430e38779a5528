"""The engine of ``efface bench``: plans, cells, records and executors.

It knows nothing of models; what a cell computes is given to it by :mod:`efface.verbs.bench`.
"""

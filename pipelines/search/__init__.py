"""Runs many trainings that differ in some settings: grids (ablation) and searches (Ray Tune), with their tables and
pictures.
"""

"""Topologies decide where the encoders' streams are combined. Each merges named streams into one joint stream by means
of a fusion.
"""

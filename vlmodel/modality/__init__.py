"""Encoders of further inputs beside pictures and text: audio, video, sensor series.

Each belongs in one file and returns ``Tokens``, as the encoders of ``vision`` and ``language`` do, so that topologies
and fusions take it as one more named stream.
"""

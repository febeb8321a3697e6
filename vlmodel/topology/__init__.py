"""Topologies: WHERE the streams meet. Each maps named streams to one joint stream, with the help of a fusion."""

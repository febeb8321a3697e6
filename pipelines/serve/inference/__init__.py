"""Requests on a loaded model: decoding images, batching, forward passes."""

"""Vision-language models composed of exchangeable parts: encoders, a topology, a fusion and a decoder."""

"""Knowledge that acts between the encoders and the topology: injected entities, memory, distillation from a teacher.

Each belongs in one file and maps named streams to named streams of ``Tokens``; a teacher wraps a decoder's loss.
"""

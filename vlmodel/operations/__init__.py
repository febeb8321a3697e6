"""Operations: what a service can do with a model. They are here if several tasks share them or if they are large;
``base`` defines the interface.
"""

"""Operations that several tasks share, or that are large; ``base`` says what an operation is."""

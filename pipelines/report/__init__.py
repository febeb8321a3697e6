"""Output for people: progress on the terminal, pictures, HTML pages."""

"""Online predictions: the HTTP application and its deployment."""

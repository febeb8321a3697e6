"""The routes of the HTTP application, one file for each family. They know a service, and no model."""

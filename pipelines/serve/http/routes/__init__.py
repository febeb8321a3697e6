"""The routes of the HTTP application: one file a task, with its schemas. They know a service, and no model."""

"""The routes of the HTTP application: one file for each task, with its schemas. They know only the interface
``Service``, and no model.
"""

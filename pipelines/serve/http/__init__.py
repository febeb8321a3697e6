"""The HTTP application: routes with their schemas, middleware, the web page."""

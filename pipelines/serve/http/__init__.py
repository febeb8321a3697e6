"""The HTTP application: routes, schemas, middleware, the page."""

"""What goes over the wire, as pydantic models: they validate requests, shape answers and write the OpenAPI page."""

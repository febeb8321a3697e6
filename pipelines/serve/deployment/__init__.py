"""Starting, updating and stopping the service on a Ray cluster."""

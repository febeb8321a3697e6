"""The service on a Ray cluster: deploying, replicas, the ingress."""

"""The service: an HTTP API in front of scoring replicas, on Ray Serve, with a store of onboarded users."""

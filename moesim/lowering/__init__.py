"""Lower a candidate, a cluster and a routing to a `Program`; no other package does."""

"""Instructions whose fulfilment a program can check, so that no judge is needed."""

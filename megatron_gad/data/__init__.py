"""From files to token batches; no model and no device."""

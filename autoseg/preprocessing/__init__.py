"""From a checked dataset to what planning and training read: fingerprint, preprocessed cases, their storage."""

"""Plain SQL, one file a version; see `onceward.schema`."""

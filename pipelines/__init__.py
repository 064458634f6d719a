"""The shell around the library: stages, paths, params.yaml, command line and tracking."""

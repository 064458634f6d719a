"""Speed, measured: scripts, never timed tests."""

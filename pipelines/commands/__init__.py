"""The commands beside the stages, by whom they serve."""

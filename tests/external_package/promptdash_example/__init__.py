"""An example of every kind of plug-in that PromptDASH takes; docs/extending shows each of these files."""

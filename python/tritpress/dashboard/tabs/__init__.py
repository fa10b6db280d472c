"""The five tabs of a run; each pulls what changed since it last looked, and only while it is shown."""

"""Models on disk: found, opened, checked, saved, described; and those that ship."""

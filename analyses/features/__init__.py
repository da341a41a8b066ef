"""Transcoder features that replace MLPs, and the heads through which one feature influences another."""

"""The live page of a sweep, over `otkd.report`."""

"""Profiling one implementation on one problem: traces, tables, memory, kernel resources."""

"""Runs in, what people read out: the report, figures and tables for papers, the model card."""

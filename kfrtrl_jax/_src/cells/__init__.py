"""Recurrent cells as plain functions of one lane, without any derivatives written by hand."""

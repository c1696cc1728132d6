"""Recurrent cells as plain functions of one lane; none of them knows of derivatives."""

"""Speeds and memory as ratios: training steps against measured floors and other people's tools."""

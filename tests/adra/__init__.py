"""Tests of ADRA."""

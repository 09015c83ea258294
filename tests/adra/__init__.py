"""Tests of ADRA, by what they are about."""

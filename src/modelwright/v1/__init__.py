"""The messages and stubs of `modelwright.v1`, generated from protos/ by protos/generate.py; do not edit."""

"""What `modelwright.Client` needs; imports grpc and the generated code only."""

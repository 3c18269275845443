"""What a program costs, whoever runs it: matmuls, memory traffic, communication, and devices."""

"""What is durable: the database, files, and the threads that write them."""

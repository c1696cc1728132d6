"""Studies of the library: how exact, how noisy and how fast it is. Nothing else imports them."""

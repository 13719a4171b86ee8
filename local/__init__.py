"""Local stand-ins of every service the flows talk to, started one way by demo, tests and bench. Production never imports this."""

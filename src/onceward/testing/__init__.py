"""For your own tests: a Postgres without a server, a connection that can be cut, the suite that a transport must pass.

postgres     `Cluster`: a real Postgres of the test's own, killed and restarted at will
proxy        `Proxy`: a TCP proxy before a Postgres, cut at will or around one statement
transport    `TransportSuite`: what every Source and Sink must do

The first needs `pip install 'onceward[testing]'`, the others only the library.
"""

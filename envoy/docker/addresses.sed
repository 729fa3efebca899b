# The differences from envoy/redis.yaml in containers: every server is on 127.0.0.1 there, and has a name here.

# Clients and users of the admin port come from outside the container.
s/address: 127\.0\.0\.1, port_value: 10000 /address: 0.0.0.0, port_value: 10000 /
s/address: 127\.0\.0\.1, port_value: 9901 /address: 0.0.0.0, port_value: 9901 /

s/address: 127\.0\.0\.1, port_value: 6379 /address: redis, port_value: 6379 /

# A cluster without a type does not resolve names.
s/address: 127\.0\.0\.1, port_value: 9000 /address: origin, port_value: 9000 /
s/^  - name: origin$/&\n    type: STRICT_DNS/

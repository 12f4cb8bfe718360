# secretsvc-serve: what the web tier (`secretsvc serve`) may do in Vault or OpenBao.
#
# Installed by `secretsvc vault bootstrap`, which fills in the path of the mount.
#
# mount: {{mount}}
#
# In short: it writes what callers wish for, hands values over without ever being able to read one back,
# and reads what work reports. Whoever takes over the web tier gets no registry password from Vault.
#
# Names are flat, so every path ends in one "+" (exactly one segment) and never in "*": a name with a slash or
# dots in it matches nothing. What is not named here is denied.

# --- Wishes: the records that admins and hooks make. They hold no secret value. ---
# Written by compare-and-set. Deleting is writing a tombstone; only work removes documents for good.

path "{{mount}}/data/registry/+" {
  capabilities = ["create", "read", "update"]
}
path "{{mount}}/metadata/registry/" {
  capabilities = ["list"]
}

path "{{mount}}/data/credential/+" {
  capabilities = ["create", "read", "update"]
}
path "{{mount}}/metadata/credential/" {
  capabilities = ["list"]
}

path "{{mount}}/data/pullsecret/+" {
  capabilities = ["create", "read", "update"]
}
path "{{mount}}/metadata/pullsecret/" {
  capabilities = ["list"]
}

path "{{mount}}/data/authfile/+" {
  capabilities = ["create", "read", "update"]
}
path "{{mount}}/metadata/authfile/" {
  capabilities = ["list"]
}

# Who may call: digests of API tokens, never a token.
path "{{mount}}/data/principal/+" {
  capabilities = ["create", "read", "update"]
}
path "{{mount}}/metadata/principal/" {
  capabilities = ["list"]
}

# --- What is handed to work. ---
# A candidate holds a secret value. Create only: it can neither be read back nor changed, not even by the
# request that brought it. The list tells which are still waiting.
path "{{mount}}/data/candidate/+" {
  capabilities = ["create"]
}
path "{{mount}}/metadata/candidate/" {
  capabilities = ["list"]
}

# An inbox item asks work to do something. It holds no value; reading it back tells a caller what is waiting.
path "{{mount}}/data/inbox/+" {
  capabilities = ["create", "read"]
}
path "{{mount}}/metadata/inbox/" {
  capabilities = ["list"]
}

# --- Facts: written by work alone, shown by serve. They hold no secret value. ---
path "{{mount}}/data/state/+" {
  capabilities = ["read"]
}
path "{{mount}}/metadata/state/" {
  capabilities = ["list"]
}

path "{{mount}}/data/observed/+" {
  capabilities = ["read"]
}
path "{{mount}}/metadata/observed/" {
  capabilities = ["list"]
}

path "{{mount}}/data/view/+" {
  capabilities = ["read"]
}
path "{{mount}}/metadata/view/" {
  capabilities = ["list"]
}

path "{{mount}}/data/history/+" {
  capabilities = ["read"]
}
path "{{mount}}/metadata/history/" {
  capabilities = ["list"]
}

# Absent on purpose: generation (the secret values) and key (the keys of digests and marks).

# --- Its own token: see it, keep it alive, end it. ---
path "auth/token/lookup-self" {
  capabilities = ["read"]
}
path "auth/token/renew-self" {
  capabilities = ["update"]
}
path "auth/token/revoke-self" {
  capabilities = ["update"]
}

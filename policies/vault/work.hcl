# secretsvc-work: what the worker (`secretsvc work`) may do in Vault or OpenBao.
#
# Installed by `secretsvc vault bootstrap`, which fills in the path of the mount.
#
# mount: {{mount}}
#
# In short: it reads everything but who may call, is the only writer of facts, and removes what is done with.
# It can not make a wish, nor alter a candidate, an inbox item, a generation or a key.
#
# Names are flat, so every path ends in one "+" (exactly one segment) and never in "*": a name with a slash or
# dots in it matches nothing. What is not named here is denied.

# --- Wishes: made by serve. ---
# "update" is for the removal mark that fences the deletion of a tombstone; deleting metadata removes the
# document with all its versions. "create" is missing: work can not invent a wish.
path "{{mount}}/data/registry/+" {
  capabilities = ["read", "update"]
}
path "{{mount}}/metadata/registry/" {
  capabilities = ["list"]
}
path "{{mount}}/metadata/registry/+" {
  capabilities = ["delete"]
}

path "{{mount}}/data/credential/+" {
  capabilities = ["read", "update"]
}
path "{{mount}}/metadata/credential/" {
  capabilities = ["list"]
}
path "{{mount}}/metadata/credential/+" {
  capabilities = ["delete"]
}

path "{{mount}}/data/pullsecret/+" {
  capabilities = ["read", "update"]
}
path "{{mount}}/metadata/pullsecret/" {
  capabilities = ["list"]
}
path "{{mount}}/metadata/pullsecret/+" {
  capabilities = ["delete"]
}

path "{{mount}}/data/authfile/+" {
  capabilities = ["read", "update"]
}
path "{{mount}}/metadata/authfile/" {
  capabilities = ["list"]
}
path "{{mount}}/metadata/authfile/+" {
  capabilities = ["delete"]
}

# Absent on purpose: principal. Who may call the API is no business of work, which must not be able to let
# itself in, or lock the admins out.

# --- What serve hands over: read it, carry it out, remove it. Never change it. ---
# A candidate holds a secret value.
path "{{mount}}/data/candidate/+" {
  capabilities = ["read"]
}
path "{{mount}}/metadata/candidate/" {
  capabilities = ["list"]
}
path "{{mount}}/metadata/candidate/+" {
  capabilities = ["delete"]
}

path "{{mount}}/data/inbox/+" {
  capabilities = ["read"]
}
path "{{mount}}/metadata/inbox/" {
  capabilities = ["list"]
}
path "{{mount}}/metadata/inbox/+" {
  capabilities = ["delete"]
}

# --- Generations: the secret values. Written once, then only read, and removed with their credential. ---
path "{{mount}}/data/generation/+" {
  capabilities = ["create", "read"]
}
path "{{mount}}/metadata/generation/" {
  capabilities = ["list"]
}
path "{{mount}}/metadata/generation/+" {
  capabilities = ["delete"]
}

# --- The installation's keys of digests and ownership marks: made once, never changed, never removed. ---
path "{{mount}}/data/key/+" {
  capabilities = ["create", "read"]
}
path "{{mount}}/metadata/key/" {
  capabilities = ["list"]
}

# --- Facts: what is so. Written by compare-and-set, removed when their credential or rule is gone. ---
path "{{mount}}/data/state/+" {
  capabilities = ["create", "read", "update"]
}
path "{{mount}}/metadata/state/" {
  capabilities = ["list"]
}
path "{{mount}}/metadata/state/+" {
  capabilities = ["delete"]
}

path "{{mount}}/data/observed/+" {
  capabilities = ["create", "read", "update"]
}
path "{{mount}}/metadata/observed/" {
  capabilities = ["list"]
}
path "{{mount}}/metadata/observed/+" {
  capabilities = ["delete"]
}

path "{{mount}}/data/view/+" {
  capabilities = ["create", "read", "update"]
}
path "{{mount}}/metadata/view/" {
  capabilities = ["list"]
}
path "{{mount}}/metadata/view/+" {
  capabilities = ["delete"]
}

path "{{mount}}/data/history/+" {
  capabilities = ["create", "read", "update"]
}
path "{{mount}}/metadata/history/" {
  capabilities = ["list"]
}
path "{{mount}}/metadata/history/+" {
  capabilities = ["delete"]
}

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

package consulkit

import (
	"fmt"

	consul "github.com/hashicorp/consul/api"
)

// Allow creates or updates a policy, and a role of the same name that has it.
// The client's token needs acl:write.
func Allow(client *consul.Client, name, description, rules string) error {
	policy := &consul.ACLPolicy{Name: name, Description: description, Rules: rules}
	old, _, err := client.ACL().PolicyReadByName(name, nil)
	switch {
	case err != nil:
		return fmt.Errorf("read policy %s: %w", name, err)
	case old == nil:
		_, _, err = client.ACL().PolicyCreate(policy, nil)
	default:
		policy.ID = old.ID
		_, _, err = client.ACL().PolicyUpdate(policy, nil)
	}
	if err != nil {
		return fmt.Errorf("write policy %s: %w", name, err)
	}
	role := &consul.ACLRole{Name: name, Description: description, Policies: []*consul.ACLLink{{Name: name}}}
	known, _, err := client.ACL().RoleReadByName(name, nil)
	switch {
	case err != nil:
		return fmt.Errorf("read role %s: %w", name, err)
	case known == nil:
		_, _, err = client.ACL().RoleCreate(role, nil)
	default:
		role.ID = known.ID
		_, _, err = client.ACL().RoleUpdate(role, nil)
	}
	if err != nil {
		return fmt.Errorf("write role %s: %w", name, err)
	}
	return nil
}

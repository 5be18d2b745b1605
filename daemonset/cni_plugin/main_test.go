// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
)

const previous = `{"cniVersion":"0.4.0","ips":[{"address":"10.0.0.7/24"}],"odd":"kept \"}\" as it is"}`

// agent answers one request on a socket and returns what it was asked.
func agent(t *testing.T, line string) (string, <-chan request) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "cni.sock")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	asked := make(chan request, 1)
	go func() {
		connection, err := listener.Accept()
		if err != nil {
			return
		}
		defer connection.Close()
		text, _ := bufio.NewReader(connection).ReadBytes('\n')
		var got request
		if json.Unmarshal(text, &got) == nil {
			asked <- got
		}
		fmt.Fprintln(connection, line)
	}()
	return path, asked
}

func call(command, socket, namespace string) (int, string) {
	environment := map[string]string{
		"CNI_COMMAND": command,
		"CNI_NETNS":   "/run/netns/cni-1",
		"CNI_ARGS":    "IgnoreUnknown=1;K8S_POD_NAMESPACE=" + namespace + ";K8S_POD_NAME=web;K8S_POD_UID=u-1",
	}
	conf := fmt.Sprintf(`{"cniVersion":"0.4.0","name":"n","type":"ambit-cni","socket":%q,`+
		`"excludeNamespaces":["kube-system"],"prevResult":%s}`, socket, previous)
	var out bytes.Buffer
	code := run(func(name string) string { return environment[name] }, strings.NewReader(conf), &out)
	return code, strings.TrimSpace(out.String())
}

func TestAnEnrolledPodStartsWithTheResultOfThePluginBefore(t *testing.T) {
	for _, told := range []string{"enrolled", "ignored"} {
		socket, asked := agent(t, fmt.Sprintf(`{"result":%q,"reason":"","code":""}`, told))
		code, out := call("ADD", socket, "shop")
		if code != 0 || out != previous {
			t.Errorf("%s: %d %s", told, code, out)
		}
		got := <-asked
		if got.Command != "ADD" || got.UID != "u-1" || got.Namespace != "shop" || got.Name != "web" ||
			got.Netns != "/run/netns/cni-1" || len(got.IPs) != 1 || got.IPs[0] != "10.0.0.7/24" {
			t.Errorf("the agent was asked %+v", got)
		}
	}
}

func TestARefusalIsToldWithItsReason(t *testing.T) {
	socket, _ := agent(t, `{"result":"error","reason":"no ztunnel is connected","code":"AMB2107"}`)
	code, out := call("ADD", socket, "shop")
	if code == 0 || !strings.Contains(out, "no ztunnel is connected [AMB2107]") || !strings.Contains(out, `"code":100`) {
		t.Errorf("%d %s", code, out)
	}
}

func TestWithoutAnAgentPodsWait(t *testing.T) {
	code, out := call("ADD", filepath.Join(t.TempDir(), "absent.sock"), "shop")
	if code == 0 || !strings.Contains(out, `"code":11`) || !strings.Contains(out, "does not answer") {
		t.Errorf("%d %s", code, out)
	}
}

func TestAnAnswerThatIsNoneIsNoLeave(t *testing.T) {
	for _, line := range []string{"", "{}", "nonsense", `{"result":"removed"}`} {
		socket, _ := agent(t, line)
		if code, out := call("ADD", socket, "shop"); code == 0 {
			t.Errorf("%q let the pod start: %s", line, out)
		}
	}
}

func TestExcludedNamespacesNeedNoAgent(t *testing.T) {
	code, out := call("ADD", filepath.Join(t.TempDir(), "absent.sock"), "kube-system")
	if code != 0 || out != previous {
		t.Errorf("%d %s", code, out)
	}
}

func TestAPodMayAlwaysEnd(t *testing.T) {
	socket, asked := agent(t, `{"result":"error","reason":"no"}`)
	if code, out := call("DEL", socket, "shop"); code != 0 || out != "" {
		t.Errorf("%d %s", code, out)
	}
	if got := <-asked; got.Command != "DEL" || got.UID != "u-1" {
		t.Errorf("the agent was asked %+v", got)
	}
	if code, _ := call("DEL", filepath.Join(t.TempDir(), "absent.sock"), "shop"); code != 0 {
		t.Error("a pod cannot end without an agent")
	}
}

func TestMalformedCallsFailByName(t *testing.T) {
	none := func(string) string { return "" }
	for name, input := range map[string]string{"no JSON": "{", "CNI_COMMAND": "{}"} {
		var out bytes.Buffer
		if code := run(none, strings.NewReader(input), &out); code == 0 || !strings.Contains(out.String(), name) {
			t.Errorf("%s: %d %s", name, code, out.String())
		}
	}
	withoutUID := func(name string) string {
		return map[string]string{"CNI_COMMAND": "ADD", "CNI_ARGS": "K8S_POD_NAME=web"}[name]
	}
	var out bytes.Buffer
	if code := run(withoutUID, strings.NewReader(`{"prevResult":{}}`), &out); code == 0 ||
		!strings.Contains(out.String(), "K8S_POD_UID") {
		t.Errorf("%d %s", code, out.String())
	}
	out.Reset()
	if code := run(withoutUID, strings.NewReader(`{}`), &out); code == 0 || !strings.Contains(out.String(), "last plugin") {
		t.Errorf("%d %s", code, out.String())
	}
}

func TestVersionsAreToldWithoutAConfiguration(t *testing.T) {
	var out bytes.Buffer
	version := func(string) string { return "VERSION" }
	if code := run(version, strings.NewReader(""), &out); code != 0 || !strings.Contains(out.String(), `"0.4.0"`) {
		t.Errorf("%d %s", code, out.String())
	}
}
